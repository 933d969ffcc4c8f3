//! What is held against one GPU or one MIG slice of it, and where that leaves it.

use std::sync::OnceLock;
use std::time::Duration;

use super::super::assess::{Assessment, assess};
use super::super::clearing::Proof;
use super::super::fault::{Fault, InWords};
use super::super::xid::Effect;
use super::super::{GpuHealth, GpuState};
use super::VERIFY_FOR;
use crate::facts::NvmlStatus;

#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    fault: Option<Fault>,
    /// The worst that checks and patterns find now.
    finding: Option<Fault>,
    /// The last XID that the kernel log told of in words.
    in_words: Option<InWords>,
    recovering: bool,
    cleared_by: Option<String>,
    standing: Option<Standing>,
}

/// Where it stands and since when, on the caller's clock.
#[derive(Debug, Clone)]
struct Standing {
    assessment: Assessment,
    age: Duration,
    entered: OnceLock<Duration>,
}

impl Record {
    /// What was held before, and what was proven since then.
    pub fn before(fault: Fault, proven: Option<(Proof, &str)>) -> Self {
        let mut record = Self::default();
        record.hold(fault);
        if let Some((proof, by)) = proven {
            record.end(proof, by);
        }
        record
    }

    /// Goes on from what was held before anything that is held here: the older is the first of the worst.
    pub fn follow(&mut self, before: Self) {
        if let Some(first) = before.fault {
            let since = self.fault.take();
            self.hold(first);
            if let Some(since) = since {
                self.hold(since);
            }
        } else if self.fault.is_none() {
            self.cleared_by = self.cleared_by.take().or(before.cleared_by);
        }
        let is_ill = self.held().is_some_and(Fault::is_unhealthy);
        self.recovering |= before.recovering && !is_ill;
    }

    /// Keeps the first of the worst faults: what follows a fault is mostly its consequence. What the kernel log's words say of an XID
    /// takes the place of what NVML's bare number was taken for.
    pub fn hold(&mut self, fault: Fault) {
        if let Some(new) = fault.in_words {
            let is_twin = |known: Option<InWords>| known.is_some_and(|known| known.is_twin_of(new));
            if new.lacking && is_twin(self.in_words) {
                return;
            }
            if !new.lacking {
                self.in_words = Some(new);
                if is_twin(
                    self.fault
                        .as_ref()
                        .and_then(|f| f.in_words)
                        .filter(|known| known.lacking),
                ) {
                    self.fault = None;
                }
            }
        }
        if fault.effect == Effect::Counted {
            return;
        }
        if fault.is_unhealthy() {
            self.recovering = false;
        }
        if self.fault.as_ref().is_none_or(|f| fault.effect > f.effect) {
            self.fault = Some(fault);
            self.cleared_by = None;
        }
    }

    /// What an event left.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// The worse of an event's fault and a finding; the fault where they are equally bad.
    fn held(&self) -> Option<&Fault> {
        match (&self.fault, &self.finding) {
            (Some(fault), Some(finding)) if finding.effect > fault.effect => Some(finding),
            (Some(fault), _) => Some(fault),
            (None, finding) => finding.as_ref(),
        }
    }

    /// What checks and patterns find now.
    pub fn find(&mut self, finding: Option<Fault>) {
        let ill = |f: &Option<Fault>| f.as_ref().is_some_and(Fault::is_unhealthy);
        if ill(&finding) {
            self.recovering = false;
            self.cleared_by = None;
        } else if ill(&self.finding) && !ill(&self.fault) {
            self.recovering = true;
            self.cleared_by = Some("the check passes again".into());
        }
        self.finding = finding;
    }

    /// Something is proven of the GPU. What it ends is gone; that it may be handed out again has to be seen where it could not.
    pub fn end(&mut self, proof: Proof, by: &str) {
        let mut ended = Vec::new();
        if proof >= Proof::Reset {
            ended.extend(self.finding.take());
        }
        ended.extend(self.fault.take_if(|fault| fault.until <= proof));
        if ended.is_empty() {
            return;
        }
        self.cleared_by = Some(by.to_owned());
        let still_ill = self.held().is_some_and(Fault::is_unhealthy);
        self.recovering |= !still_ill && ended.iter().any(Fault::is_unhealthy);
    }

    /// Judges anew at `now`.
    pub fn settle(&mut self, nvml: &NvmlStatus, now: Duration) {
        let verifying = self
            .standing
            .as_ref()
            .filter(|s| s.assessment.state == GpuState::Verifying);
        let quiet = verifying.and_then(|s| Some(now.saturating_sub(*s.entered.get()?)));
        let verified_for = quiet.and_then(|quiet| quiet.checked_sub(VERIFY_FOR));
        if verified_for.is_some() {
            self.recovering = false;
        }
        let assessment = assess(self.held(), self.recovering, nvml);
        let age = self.held().map(|f| f.age).or(verified_for).unwrap_or_default();
        match &mut self.standing {
            Some(standing) if standing.assessment.state == assessment.state => standing.assessment = assessment,
            standing => {
                *standing = Some(Standing {
                    assessment,
                    age,
                    entered: OnceLock::new(),
                });
            }
        }
    }

    /// Health at `now`.
    pub fn health(&self, uuid: &str, now: Duration) -> GpuHealth {
        let mut health = GpuHealth {
            uuid: uuid.to_owned(),
            state: GpuState::Healthy,
            reason: String::new(),
            message: String::new(),
            since: Duration::ZERO,
            cleared_by: self.cleared_by.clone(),
            gpu: None,
        };
        let Some(standing) = &self.standing else { return health };
        let entered = *standing.entered.get_or_init(|| now.saturating_sub(standing.age));
        let since = now.saturating_sub(entered);
        let assessment = &standing.assessment;
        if assessment.state == GpuState::Verifying && since >= VERIFY_FOR {
            health.since = since - VERIFY_FOR;
            // What is worth watching still is.
            if let Some(held) = self.held() {
                health.state = GpuState::Suspect;
                health.reason = held.reason.to_string();
                health.message.clone_from(&held.message);
            }
            return health;
        }
        health.state = assessment.state;
        health.reason = assessment.reason.map(|r| r.to_string()).unwrap_or_default();
        health.message.clone_from(&assessment.message);
        health.since = since;
        health
    }
}
