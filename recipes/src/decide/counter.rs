//! How numbers are written, and how they grow.

/// How the number is written in its znode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Eight bytes, big end first: Curator's `DistributedAtomicLong`.
    #[default]
    CuratorLong,
    /// Four bytes, big end first: Curator's `DistributedAtomicInteger` and `SharedCount`.
    CuratorInt,
    /// Decimal text: kazoo's `Counter`.
    Kazoo,
}

impl Encoding {
    /// The number in a znode's data; no data is zero, as for Curator and kazoo. `None`: it is none.
    pub fn parse(self, data: &[u8]) -> Option<i64> {
        if data.is_empty() {
            return Some(0);
        }
        match self {
            Encoding::CuratorLong => data.try_into().ok().map(i64::from_be_bytes),
            Encoding::CuratorInt => data.try_into().ok().map(i32::from_be_bytes).map(i64::from),
            Encoding::Kazoo => std::str::from_utf8(data).ok()?.trim().parse().ok(),
        }
    }

    /// The data of a number; `None`: it does not fit.
    pub fn encode(self, number: i64) -> Option<Vec<u8>> {
        match self {
            Encoding::CuratorLong => Some(number.to_be_bytes().to_vec()),
            Encoding::CuratorInt => i32::try_from(number).ok().map(|number| number.to_be_bytes().to_vec()),
            Encoding::Kazoo => Some(number.to_string().into_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_were_written() {
        for encoding in [Encoding::CuratorLong, Encoding::CuratorInt, Encoding::Kazoo] {
            for number in [0, 1, -1, 258, i64::from(i32::MAX), i64::from(i32::MIN)] {
                let data = encoding.encode(number).expect("it fits");
                assert_eq!(encoding.parse(&data), Some(number), "{encoding:?}");
            }
            assert_eq!(encoding.parse(b""), Some(0));
        }
        assert_eq!(Encoding::CuratorLong.encode(258), Some(vec![0, 0, 0, 0, 0, 0, 1, 2]));
        assert_eq!(Encoding::Kazoo.encode(-7), Some(b"-7".to_vec()));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(Encoding::CuratorInt.encode(i64::from(i32::MAX) + 1), None);
        assert_eq!(Encoding::CuratorInt.parse(&[0; 8]), None);
        assert_eq!(Encoding::CuratorLong.parse(&[0; 4]), None);
        assert_eq!(Encoding::Kazoo.parse(b"1.5"), None);
    }
}
