//! Children that somebody keeps changing do not hold up the others of their object.

use crate::kinds::error::Error;

/// What one look puts off: the first such child is told when all others were looked at.
#[derive(Debug, Default)]
pub struct Braked(Option<Error>);

impl Braked {
    /// Takes what came of one child. An error of another sort ends the look.
    pub fn pass(&mut self, done: Result<(), Error>) -> Result<(), Error> {
        match done {
            Err(error @ Error::KeepsChanging { .. }) => {
                self.0.get_or_insert(error);
                Ok(())
            }
            done => done,
        }
    }

    /// The end of the look.
    pub fn end(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn keeps_changing(name: &str) -> Result<(), Error> {
        Err(Error::KeepsChanging {
            kind: "Service",
            namespace: "ns".into(),
            name: name.into(),
            deeds: "changing spec.ports of".into(),
            minutes: 2,
            remaining: Duration::from_secs(9),
        })
    }

    #[test]
    fn the_look_goes_on_and_the_first_is_told_at_its_end() {
        let mut braked = Braked::default();
        for name in ["a", "b"] {
            assert!(braked.pass(keeps_changing(name)).is_ok());
        }
        assert!(braked.pass(Ok(())).is_ok());
        let told = braked.end().unwrap_err();
        assert!(told.to_string().contains("Service ns/a"), "{told}");
        assert!(Braked::default().end().is_ok());
    }

    #[test]
    fn what_else_fails_ends_the_look() {
        let gone = || Error::NotYetDeleted {
            kind: "Service",
            namespace: "ns".into(),
            name: "a".into(),
        };
        assert!(Braked::default().pass(Err(gone())).is_err());
    }
}
