//! Faults on demand, `--inject-fault STEP:RANK:KIND`: how a cluster takes a rank's failure can be rehearsed
//! before it matters. The tests of failures use them too.

use std::str::FromStr;
use std::time::Duration;

use crate::engine::Engine;
use crate::error::Error;

/// One fault of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The step, counted from 1, in which it happens: just before the last backward pass.
    pub(crate) step: u64,
    /// The rank that it happens to.
    pub(crate) rank: usize,
    pub(crate) kind: FaultKind,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    Panic,
    Kill,
    Stop,
    Hang,
    Exit,
    Reorder,
    Nan,
    Spike,
    /// From its step on.
    Slow,
    FlipBit,
}

/// Names on the command line.
const KINDS: [(&str, FaultKind); 10] = [
    ("panic", FaultKind::Panic),
    ("kill", FaultKind::Kill),
    ("stop", FaultKind::Stop),
    ("hang", FaultKind::Hang),
    ("exit", FaultKind::Exit),
    ("reorder", FaultKind::Reorder),
    ("nan", FaultKind::Nan),
    ("spike", FaultKind::Spike),
    ("slow", FaultKind::Slow),
    ("flip-bit", FaultKind::FlipBit),
];

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let step = parts.next()?.parse().ok().filter(|&step| step > 0)?;
            let rank = parts.next()?.parse().ok()?;
            let name = parts.next()?;
            let (_, kind) = KINDS.into_iter().find(|(known, _)| *known == name)?;
            Some(Fault { step, rank, kind })
        };
        let names = KINDS.map(|(name, _)| name).join(", ");
        parse().ok_or_else(|| {
            format!("expected STEP:RANK:KIND with a step of 1 or more and a kind among {names}")
        })
    }
}

impl FaultKind {
    /// Lets it happen on this rank.
    pub(crate) fn strike(self, engine: &mut Engine) -> Result<(), Error> {
        use signal_hook::consts::{SIGKILL, SIGSTOP};
        let raise = |signal| {
            signal_hook::low_level::raise(signal)
                .map_err(|error| Error::Other(format!("cannot raise {signal}: {error}")))
        };
        tracing::warn!(kind = ?self, "the fault that was asked for happens now");
        match self {
            FaultKind::Panic => panic!("a panic was asked for"),
            FaultKind::Kill => raise(SIGKILL),
            FaultKind::Stop => raise(SIGSTOP),
            FaultKind::Hang => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            FaultKind::Exit => std::process::exit(0),
            FaultKind::Reorder => {
                engine.comm().swap_next_two();
                Ok(())
            }
            FaultKind::Nan => engine.spoil_gradient(),
            FaultKind::Spike => engine.spoil_loss(),
            // Not at this moment: the engine lets data come late, or flips the bit when the step is done.
            FaultKind::Slow | FaultKind::FlipBit => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_by_step_rank_and_kind() {
        for (name, kind) in KINDS {
            assert_eq!(format!("17:2:{name}").parse(), Ok(Fault { step: 17, rank: 2, kind }));
        }
        for text in ["", "17", "17:2", "0:2:kill", "17:-1:kill", "17:2:sneeze", "17:2:kill:now"] {
            let error = text.parse::<Fault>().unwrap_err();
            assert!(error.contains("STEP:RANK:KIND") && error.contains("panic, kill"), "{text}: {error}");
        }
    }
}
