//! How often a child is set back to what it had been made, when somebody keeps changing or deleting it.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

/// Repairs that follow each change at once: an edit by hand, or a few.
const AT_ONCE: u32 = 5;
/// After these, one in so long: a program that changes a field back at once would keep the API server and itself busy for ever.
pub const THEN_EVERY: Duration = Duration::from_secs(120);
/// After so long without a repair the next one is the first again.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Fields that are named at most: enough to find who writes them, and the list ends growing.
const MOST_FIELDS: usize = 8;

/// What somebody did to a child since it was made as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// These fields are otherwise now.
    Changed(Vec<String>),
    /// It is gone, or its label is by which it is seen.
    Deleted,
}

/// Of one child.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Hash of what it was last made.
    applied: Option<String>,
    count: u32,
    last: Option<Timestamp>,
    /// What was changed so far, not what differs right now: that differs from look to look.
    fields: BTreeSet<String>,
    /// Whether it was deleted so far.
    deleted: bool,
    /// A repair had to wait, and the child has not been quiet since.
    braked: bool,
}

impl Repairs {
    /// Whether the child was made like this and nothing else since, as far as this process knows.
    pub fn is_applied(&self, hash: &str) -> bool {
        self.applied.as_deref() == Some(hash)
    }

    /// The child was written; with this hash, where it carries one.
    pub fn applied(&mut self, hash: Option<&str>) {
        self.applied = hash.map(str::to_owned);
    }

    /// Berth itself deleted the child: to make it again is no repair.
    pub fn pruned(&mut self) {
        self.applied = None;
        self.quiet();
    }

    /// Somebody did this. How long the child is to be left as it is; `None`: it may be repaired now.
    pub fn disturbed(&mut self, deed: Deed, now: Timestamp) -> Option<Duration> {
        if self.since(now).is_some_and(|since| since >= FORGOTTEN) {
            self.quiet();
        }
        match deed {
            Deed::Changed(fields) => {
                for field in fields {
                    if self.fields.len() < MOST_FIELDS {
                        self.fields.insert(field);
                    }
                }
            }
            Deed::Deleted => self.deleted = true,
        }
        let wait = self.wait(now);
        self.braked |= wait.is_some();
        wait
    }

    /// The child was repaired. `Some`: only for now, since a repair that came late for the brake ends nothing; look again after so long.
    pub fn repaired(&mut self, now: Timestamp) -> Option<Duration> {
        self.count = match self.since(now) {
            Some(since) if since < FORGOTTEN => self.count.saturating_add(1),
            _ => 1,
        };
        self.last = Some(now);
        self.braked.then_some(THEN_EVERY)
    }

    /// The child is as it should be. `Some`: it has not been for as long as whoever changes it is given; look again after so long.
    pub fn unchanged(&mut self, now: Timestamp) -> Option<Duration> {
        if !self.braked {
            return None;
        }
        let wait = self.wait(now);
        if wait.is_none() {
            self.quiet();
        }
        wait
    }

    /// The child was made anew, or as its object now asks: whether that is changed, too, is yet to be seen.
    pub fn written(&mut self) {
        self.quiet();
    }

    /// What was done, as far as is kept. Completes the sentence "something keeps … the Service".
    pub fn deeds(&self) -> String {
        let fields: Vec<&str> = self.fields.iter().map(String::as_str).collect();
        let fields = fields.join(", ");
        match (fields.is_empty(), self.deleted) {
            (true, _) => "deleting".into(),
            (false, true) => format!("deleting, and changing {fields} of,"),
            (false, false) => format!("changing {fields} of"),
        }
    }

    fn quiet(&mut self) {
        self.braked = false;
        self.fields.clear();
        self.deleted = false;
    }

    fn wait(&self, now: Timestamp) -> Option<Duration> {
        let since = self.since(now)?;
        let remaining = THEN_EVERY.checked_sub(since)?;
        (self.count >= AT_ONCE && !remaining.is_zero()).then_some(remaining)
    }

    fn since(&self, now: Timestamp) -> Option<Duration> {
        Some(now.duration_since(self.last?).try_into().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn field(name: &str) -> Deed {
        Deed::Changed(vec![name.to_owned()])
    }

    /// Changed and repaired at once, as often as that goes.
    fn at_its_limit() -> Repairs {
        let mut repairs = Repairs::default();
        for n in 0..5 {
            assert_eq!(repairs.disturbed(field("a"), at(n)), None, "{n}");
            assert_eq!(repairs.repaired(at(n)), None, "{n}");
        }
        repairs
    }

    #[test]
    fn a_few_at_once_then_slowly_and_after_a_quiet_time_anew() {
        let mut repairs = at_its_limit();
        assert_eq!(repairs.disturbed(field("a"), at(5)), Some(119 * S));
        assert_eq!(repairs.disturbed(field("a"), at(124)), None);
        repairs.repaired(at(124));
        assert_eq!(repairs.disturbed(field("a"), at(125)), Some(119 * S), "it goes on");
        assert_eq!(repairs.disturbed(field("a"), at(1000)), None);
        repairs.repaired(at(1000));
        assert_eq!(
            repairs.disturbed(field("a"), at(1001)),
            None,
            "long after, it is the first again"
        );
    }

    #[test]
    fn a_late_repair_is_no_end_until_the_child_was_left_alone_as_long_as_the_brake() {
        let mut repairs = at_its_limit();
        assert_eq!(repairs.unchanged(at(5)), None, "no repair had to wait");
        for round in 0..3 {
            let base = round * 120;
            assert_eq!(repairs.disturbed(field("a"), at(base + 5)), Some(119 * S));
            assert_eq!(repairs.unchanged(at(base + 6)), Some(118 * S), "changed to and fro");
            assert_eq!(repairs.disturbed(field("a"), at(base + 124)), None);
            assert_eq!(repairs.repaired(at(base + 124)), Some(THEN_EVERY));
            assert_eq!(
                repairs.unchanged(at(base + 124)),
                Some(THEN_EVERY),
                "our own write wakes a look"
            );
        }
        assert_eq!(repairs.unchanged(at(364 + 120)), None);
        assert!(repairs.fields.is_empty());
        assert_eq!(repairs.disturbed(field("a"), at(364 + 121)), None);
        assert_eq!(repairs.repaired(at(364 + 121)), None, "it was quiet in between");
    }

    #[test]
    fn an_edit_of_the_object_ends_it() {
        let mut repairs = at_its_limit();
        repairs.disturbed(field("a"), at(5));
        repairs.written();
        assert_eq!(repairs.unchanged(at(6)), None);
        assert_eq!(
            repairs.disturbed(field("b"), at(7)),
            Some(117 * S),
            "the brake holds on"
        );
        assert_eq!(repairs.deeds(), "changing b of");
    }

    #[test]
    fn deleting_counts_like_changing_and_is_told() {
        let mut repairs = Repairs::default();
        for n in 0..5 {
            assert_eq!(repairs.disturbed(Deed::Deleted, at(n)), None, "{n}");
            repairs.repaired(at(n));
        }
        assert_eq!(repairs.disturbed(Deed::Deleted, at(5)), Some(119 * S));
        assert_eq!(repairs.deeds(), "deleting");
        assert_eq!(repairs.disturbed(field("a"), at(6)), Some(118 * S));
        assert_eq!(repairs.deeds(), "deleting, and changing a of,");
        assert_eq!(repairs.unchanged(at(124)), None);
        repairs.disturbed(field("b"), at(125));
        assert_eq!(repairs.deeds(), "changing b of");
    }

    #[test]
    fn what_berth_deleted_itself_was_not_made() {
        let mut repairs = Repairs::default();
        assert!(!repairs.is_applied("h"), "not by this process");
        repairs.applied(Some("h"));
        assert!(repairs.is_applied("h") && !repairs.is_applied("i"));
        repairs.pruned();
        assert!(!repairs.is_applied("h"));
        repairs.applied(None);
        assert!(!repairs.is_applied("h"), "an admission rule takes the annotation away");
    }

    #[test]
    fn fields_that_were_changed_stay_named_and_are_few() {
        let mut repairs = at_its_limit();
        for n in 0..20 {
            repairs.disturbed(field(&format!("f{n:02}")), at(5));
        }
        let kept: Vec<&str> = repairs.fields.iter().map(String::as_str).collect();
        assert_eq!(kept, ["a", "f00", "f01", "f02", "f03", "f04", "f05", "f06"]);
        repairs.disturbed(field("f03"), at(6));
        assert_eq!(repairs.fields.len(), 8);
    }
}
