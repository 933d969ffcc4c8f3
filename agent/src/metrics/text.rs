//! Prometheus' text format, version 0.0.4.
//!
//! Not that of OpenMetrics, in which a counter's name has to end in `_total`: those of dcgm-exporter do not.

use std::fmt::{Display, Write as _};

/// The content type of what is written here.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Types of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Goes up, and starts anew with what it counts.
    Counter,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
        }
    }
}

/// A number of millionths, written as a decimal fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Micro(pub u64);

impl Display for Micro {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Labels of one series.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(String);

impl Labels {
    /// One more.
    pub fn with(mut self, name: &str, value: impl Display) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        for c in value.to_string().chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }
}

/// Metrics, one after the other.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Begins a metric; nothing is written before it has a value.
    pub fn metric<'t>(&'t mut self, name: &'t str, kind: Kind, help: &'t str) -> Metric<'t> {
        Metric {
            text: &mut self.0,
            name,
            kind,
            help,
            begun: false,
        }
    }

    /// All of it.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// One metric.
pub struct Metric<'t> {
    text: &'t mut String,
    name: &'t str,
    kind: Kind,
    help: &'t str,
    begun: bool,
}

impl Metric<'_> {
    /// The value of one series.
    pub fn value(&mut self, labels: &Labels, value: impl Display) -> &mut Self {
        let (name, kind) = (self.name, self.kind.name());
        let written = if std::mem::replace(&mut self.begun, true) {
            Ok(())
        } else {
            write!(self.text, "# HELP {name} {}\n# TYPE {name} {kind}\n", self.help)
        };
        let labels = &labels.0;
        written
            .and_then(|()| match labels.as_str() {
                "" => writeln!(self.text, "{name} {value}"),
                labels => writeln!(self.text, "{name}{{{labels}}} {value}"),
            })
            .expect("writing to a String does not fail");
        self
    }

    /// The value of a metric without labels.
    pub fn only(&mut self, value: impl Display) {
        self.value(&Labels::default(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_without_a_value_is_not_there_and_labels_are_escaped() {
        let mut text = Text::default();
        text.metric("nothing", Kind::Gauge, "Has no value.");
        let labels = Labels::default().with("a", "C:\\ \"x\"\n").with("b", 2);
        text.metric("some_total", Kind::Counter, "Has two.")
            .value(&labels, 7)
            .value(&Labels::default(), Micro(1_000_042));
        text.metric("one", Kind::Gauge, "Has one.").only(0);
        let expected = "# HELP some_total Has two.\n# TYPE some_total counter\n\
            some_total{a=\"C:\\\\ \\\"x\\\"\\n\",b=\"2\"} 7\nsome_total 1.000042\n\
            # HELP one Has one.\n# TYPE one gauge\none 0\n";
        assert_eq!(text.into_string(), expected);
    }
}
