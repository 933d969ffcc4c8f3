//! How often NVML is tried again.

use std::time::Duration;

use berth_core::freshness;

/// Threads that may be left behind in stuck calls. A third would find the same lock.
pub const MAX_STUCK: usize = 2;
/// One step of the keeper, a command or a try, is over within this, although its calls may have to wait for one that takes the driver long: past
/// it the driver hangs. The agent waits a little longer (see its `probe`), and what it asks next waits for the step as well.
pub const STEP: Duration = Duration::from_secs(20);
const _: () = assert!(
    STEP.as_secs() == 4 * freshness::NVML_CALL.as_secs(),
    "the agent's deadline is made for four calls"
);
/// Look at the file system for a driver this often where nothing tells of one. With the try itself, labels follow a new driver within half a
/// second.
pub const LOOK: Duration = Duration::from_millis(200);
/// The same where signs tell: in case one was missed.
pub const LOOK_WITH_SIGNS: Duration = Duration::from_secs(10);
/// Signs come in bursts, and a busy folder is looked at no more often than this.
pub const BURST: Duration = Duration::from_millis(50);
/// For this long after the kernel's word of a driver, tries that fail are made again as soon as may be: its device nodes come after it.
pub const EAGER: Duration = Duration::from_secs(3);
/// While NVML answers or is let go of, nothing is to be done but what is asked; this only clears away threads that have ended.
pub const IDLE: Duration = Duration::from_secs(60);
/// While NVML is hung, look this often whether the next try is due.
pub const HUNG: Duration = Duration::from_secs(1);

/// Not a busy loop, whatever the times above come to.
pub const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);
/// A try may take this share of the time until the next: 1/200 of a core. (A real library may run a setuid program to load the module.)
const SHARE: u32 = 200;

/// Time until the next try after one that took `took` and found no driver, if no file changes before.
pub fn after_failure(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(SHORTEST, LONGEST)
}

/// Time until a new thread tries after the `hangs`-th hang in a row: 1, 2, 4 … times the call's deadline, at most a minute.
pub fn after_hang(call_timeout: Duration, hangs: u32) -> Duration {
    let factor = 1u32 << hangs.saturating_sub(1).min(8);
    call_timeout.saturating_mul(factor).min(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_cost_a_bounded_share_of_a_core() {
        for (took_us, expected_ms) in [(0, 250), (100, 250), (2_000, 400), (10_000, 2_000), (2_000_000, 10_000)] {
            assert_eq!(
                after_failure(Duration::from_micros(took_us)),
                Duration::from_millis(expected_ms)
            );
        }
    }

    #[test]
    fn hangs_back_off() {
        let after: Vec<_> = (1..7)
            .map(|n| after_hang(Duration::from_secs(5), n).as_secs())
            .collect();
        assert_eq!(after, [5, 10, 20, 40, 60, 60]);
    }
}
