//! Looks at the data folder of a stopped server, for people: `corral check` ([`check`]) and `corral log` ([`log`]).
//!
//! Nothing is ever written, not even a lock file. What a start would make of a folder is said by the same functions that
//! make it so (`corral_core::storage`).

pub mod check;
pub mod log;

use corral_core::storage::inspect::CheckError;
use corral_core::storage::log_device::DeviceError;

use crate::storage::files::LockError;
use crate::storage::rocks::ReadError;

/// Why a folder could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A file or folder cannot be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A server uses the folder.
    #[error("{0}: stop the server first, what it is writing would look like damage")]
    Lock(#[from] LockError),
    /// Nothing could be said.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The disk fails below the store.
    #[error("the store cannot be read")]
    Store(#[source] ReadError),
    /// Nobody takes what is printed.
    #[error("cannot print")]
    Print(#[source] std::io::Error),
}

/// A time in ms since the Unix epoch, as people read it.
fn utc(ms: i64) -> String {
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Civil date of a day number: years begin in March, so that a leap day is the last one.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second, milli) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_001, "2024-02-29T23:59:59.001Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }
}
