//! Charts as SVG, written by hand: bars and dots on a logarithmic axis need no library.

use std::fmt::Write;

/// Sizes, in units of the picture.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 220.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 74.0;
const BOTTOM: f64 = 34.0;
const LINE: f64 = 13.0;
const GAP: f64 = 9.0;

/// What is drawn for one product in one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A bar from the axis to a value.
    Bar(f64),
    /// A line from the first value to the last, a dot at the first and a stroke at each other one.
    Span(Vec<f64>),
    /// It did not run.
    Nothing,
}

impl Mark {
    fn values(&self) -> &[f64] {
        match self {
            Mark::Bar(value) => std::slice::from_ref(value),
            Mark::Span(values) => values,
            Mark::Nothing => &[],
        }
    }
}

/// One picture.
pub struct Chart<'a> {
    pub title: &'a str,
    /// What the axis says, and in which unit.
    pub axis: &'a str,
    /// Name and colour of each product.
    pub products: &'a [(&'a str, &'a str)],
    /// Name of each row, and a mark for each product.
    pub rows: &'a [(&'a str, Vec<Mark>)],
}

impl Chart<'_> {
    /// The file. Values that no logarithm has (0 and less) are left out.
    pub fn svg(&self) -> String {
        let shown = |value: &f64| value.is_finite() && *value > 0.0;
        let values = || self.rows.iter().flat_map(|(_, marks)| marks).flat_map(Mark::values).copied().filter(shown);
        let (least, most) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        // Whole decades, at least one; without any value one that shows nothing.
        let from = if least.is_finite() { least.log10().floor() } else { 0.0 };
        let to = if most.is_finite() { most.log10().ceil().max(from + 1.0) } else { 1.0 };
        let x = |value: f64| LEFT + (value.log10() - from) / (to - from) * (WIDTH - LEFT - RIGHT);
        let group = self.products.len() as f64 * LINE + GAP;
        let bottom = TOP + self.rows.len() as f64 * group;
        let height = bottom + BOTTOM;

        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
             font-size=\"11\">\n<title>{title}</title>\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n",
            title = escape(self.title)
        );
        let mut at = 16.0;
        for (name, colour) in self.products {
            text(&mut out, format_args!("<rect x=\"{at}\" y=\"36\" width=\"10\" height=\"10\" fill=\"{colour}\"/>"));
            text(&mut out, format_args!("<text x=\"{}\" y=\"45\">{}</text>", at + 14.0, escape(name)));
            at += 34.0 + 6.5 * name.chars().count() as f64;
        }
        for decade in from as i32..=to as i32 {
            let value = 10f64.powi(decade);
            let at = x(value);
            text(
                &mut out,
                format_args!("<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>"),
            );
            text(
                &mut out,
                format_args!(
                    "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{}</text>",
                    TOP - 6.0,
                    number(value)
                ),
            );
        }
        text(
            &mut out,
            format_args!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">{}</text>",
                (LEFT + WIDTH - RIGHT) / 2.0,
                height - 12.0,
                escape(self.axis)
            ),
        );
        for (index, (name, marks)) in self.rows.iter().enumerate() {
            let top = TOP + index as f64 * group + GAP / 2.0;
            let middle = top + self.products.len() as f64 * LINE / 2.0 + 4.0;
            text(
                &mut out,
                format_args!("<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>", LEFT - 10.0, escape(name)),
            );
            for (line, (mark, (_, colour))) in marks.iter().zip(self.products).enumerate() {
                let y = top + line as f64 * LINE;
                self.mark(&mut out, mark, colour, y, &x);
            }
        }
        out.push_str("</svg>\n");
        out
    }

    fn mark(&self, out: &mut String, mark: &Mark, colour: &str, y: f64, x: &impl Fn(f64) -> f64) {
        let shown: Vec<f64> = mark.values().iter().copied().filter(|v| v.is_finite() && *v > 0.0).collect();
        let (Some(first), Some(last)) = (shown.first(), shown.last()) else { return };
        let middle = y + LINE / 2.0;
        match mark {
            Mark::Nothing => return,
            Mark::Bar(value) => text(
                out,
                format_args!(
                    "<rect x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                    y + 1.0,
                    x(*value) - LEFT,
                    LINE - 2.0
                ),
            ),
            Mark::Span(_) => {
                text(
                    out,
                    format_args!(
                        "<line x1=\"{:.1}\" y1=\"{middle}\" x2=\"{:.1}\" y2=\"{middle}\" stroke=\"{colour}\"/>",
                        x(*first),
                        x(*last)
                    ),
                );
                text(out, format_args!("<circle cx=\"{:.1}\" cy=\"{middle}\" r=\"3\" fill=\"{colour}\"/>", x(*first)));
                for value in &shown[1..] {
                    text(
                        out,
                        format_args!(
                            "<line x1=\"{0:.1}\" y1=\"{1}\" x2=\"{0:.1}\" y2=\"{2}\" stroke=\"{colour}\" \
                             stroke-width=\"2\"/>",
                            x(*value),
                            middle - 4.0,
                            middle + 4.0
                        ),
                    );
                }
            }
        }
        text(
            out,
            format_args!(
                "<text x=\"{:.1}\" y=\"{}\" font-size=\"9\" fill=\"#333\">{}</text>",
                x(*last) + 6.0,
                middle + 3.0,
                number(*last)
            ),
        );
    }
}

fn text(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a string does not fail.
    let _ = writeln!(out, "{line}");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Short: three digits are all a picture can show.
fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", short(v / 1e6)),
        v if v >= 1e3 => format!("{} k", short(v / 1e3)),
        v => short(v),
    }
}

fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => trimmed(format!("{v:.1}")),
        v => trimmed(format!("{v:.2}")),
    }
}

fn trimmed(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(rows: &[(&str, Vec<Mark>)]) -> String {
        let products = [("a", "#111111"), ("b <c>", "#222222")];
        Chart { title: "T & U", axis: "per second", products: &products, rows }.svg()
    }

    /// Values of an attribute in the elements that contain `of`.
    fn attribute(svg: &str, of: &str, name: &str) -> Vec<f64> {
        let key = format!(" {name}=\"");
        svg.lines()
            .filter(|line| line.contains(of))
            .map(|line| line.split(&key).nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect()
    }

    #[test]
    fn ten_times_as_much_is_as_much_longer_wherever_it_is() {
        let bars = [10.0, 100.0, 1000.0].map(|value| ("row", vec![Mark::Bar(value), Mark::Nothing]));
        let svg = chart(&bars);
        let widths = attribute(&svg, "height=\"11\" fill=\"#111111\"", "width");
        assert_eq!(widths.len(), 3);
        assert!((widths[2] - widths[1] - (widths[1] - widths[0])).abs() < 0.2, "{widths:?}");
        assert!(!svg.contains("height=\"11\" fill=\"#222222\""), "nothing is drawn for what did not run");
    }

    #[test]
    fn a_span_has_a_dot_and_a_stroke_for_each_further_value() {
        let svg = chart(&[("row", vec![Mark::Span(vec![1.0, 20.0, 300.0]), Mark::Nothing])]);
        assert_eq!(svg.matches("<circle").count(), 1);
        assert_eq!(svg.matches("stroke-width=\"2\"").count(), 2);
        assert!(svg.contains(">300</text>"));
    }

    #[test]
    fn names_are_escaped_and_values_without_a_logarithm_left_out() {
        let svg = chart(&[("x<y", vec![Mark::Bar(0.0), Mark::Bar(f64::NAN)])]);
        assert!(svg.contains("T &amp; U") && svg.contains("b &lt;c&gt;") && svg.contains("x&lt;y"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.2, 11.94, 1_872_747.0, 69_066.0, 1000.0, 370.0].map(number);
        assert_eq!(shown, ["0.2", "11.9", "1.87 M", "69.1 k", "1 k", "370"]);
    }
}
