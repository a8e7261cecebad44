//! Faults on demand.

const VARIABLE: &str = "NCCL_DOUBLE_FAULT";

/// What happens, and from which group of operations on; 0 is the meeting of the ranks. Of registrations, from which
/// one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    group: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Absent,
    AsyncError,
    Unregistered,
}

impl Fault {
    /// The fault that the environment asks of this rank.
    pub(crate) fn of_rank(rank: usize) -> Result<Option<Fault>, String> {
        match std::env::var(VARIABLE) {
            Ok(text) => parse(&text, rank),
            Err(_) => Ok(None),
        }
    }

    /// Whether it is there in this group.
    pub(crate) fn strikes(self, group: u64) -> bool {
        group >= self.group
    }
}

fn parse(text: &str, rank: usize) -> Result<Option<Fault>, String> {
    let fields: Vec<&str> = text.split(':').collect();
    let parsed = match fields[..] {
        [kind, rank, group] => {
            let kind = match kind {
                "absent" => Some(Kind::Absent),
                "async-error" => Some(Kind::AsyncError),
                "unregistered" => Some(Kind::Unregistered),
                _ => None,
            };
            kind.zip(rank.parse::<usize>().ok()).zip(group.parse().ok())
        }
        _ => None,
    };
    let ((kind, of), group) = parsed
        .ok_or_else(|| format!("{VARIABLE}={text}: expected absent|async-error|unregistered:RANK:GROUP"))?;
    Ok((of == rank).then_some(Fault { kind, group }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_belongs_to_one_rank_and_stays() {
        assert_eq!(parse("absent:2:7", 1), Ok(None));
        let fault = parse("async-error:2:7", 2).unwrap().unwrap();
        assert_eq!(fault, Fault { kind: Kind::AsyncError, group: 7 });
        assert!(!fault.strikes(6) && fault.strikes(7) && fault.strikes(8));
        for text in ["", "absent", "absent:1", "absent:x:1", "sneeze:1:1", "absent:1:1:1"] {
            assert!(parse(text, 1).unwrap_err().contains("expected absent|async-error"), "{text}");
        }
    }
}
