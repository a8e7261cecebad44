//! How ranks agree to go on together or to end together, and on one sentence about why.

use std::fmt::Write;

use crate::{CommError, CommThread};

/// Why a rank cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code with which the job should end.
    pub exit_code: i32,
    /// What was wrong, for people.
    pub sentence: String,
}

/// The failure that all ranks end with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The rank it belongs to, the lowest that failed.
    pub rank: usize,
    /// What failed there.
    pub failure: Failure,
    /// Whether that is this rank, the one that should print it.
    pub mine: bool,
}

/// Exit code of a failure that nobody chose a code for.
pub(crate) const EXIT_FAILURE: i32 = 1;

impl CommThread {
    /// Collective: the value if every rank succeeded, else, on all ranks, the failure of the lowest rank that
    /// failed.
    ///
    /// # Errors
    /// That failure; or that this rank could not talk to the others, as a failure of its own.
    pub fn agree<T>(&self, local: Result<T, Failure>) -> Result<T, Agreed> {
        let word = local.as_ref().err().map_or_else(Vec::new, Failure::to_bytes);
        let words = self.all_gather(word).map_err(|error| self.failed_alone(&error))?;
        let failed =
            words.iter().enumerate().find_map(|(rank, word)| Some((rank, Failure::from_bytes(word)?)));
        match (failed, local) {
            (None, Ok(value)) => Ok(value),
            (Some((rank, failure)), _) => Err(Agreed { rank, failure, mine: rank == self.topology().rank }),
            // A rank's own word is among all words, so this is an exchange gone wrong.
            (None, Err(failure)) => Err(Agreed { rank: self.topology().rank, failure, mine: true }),
        }
    }

    /// Collective: checks that `value`, a text that describes `what`, is the same on all ranks.
    ///
    /// # Errors
    /// On all ranks, a failure of the first rank whose value differs from rank 0's, with both ranks, their
    /// hosts and the first lines that differ; or that this rank could not talk to the others.
    pub fn agree_equal(&self, what: &str, value: &str) -> Result<(), Agreed> {
        let host = &self.topology().host;
        let mut word = Vec::with_capacity(8 + host.len() + value.len());
        word.extend_from_slice(&(host.len() as u64).to_le_bytes());
        word.extend_from_slice(host.as_bytes());
        word.extend_from_slice(value.as_bytes());
        let words = self.all_gather(word).map_err(|error| self.failed_alone(&error))?;
        let values: Vec<(String, String)> = words.iter().map(|word| host_and_value(word)).collect();
        let Some(rank) = values.iter().position(|(_, value)| *value != values[0].1) else { return Ok(()) };
        let sentence = difference(what, &values[0], rank, &values[rank]);
        let failure = Failure { exit_code: EXIT_FAILURE, sentence };
        Err(Agreed { rank, failure, mine: rank == self.topology().rank })
    }

    fn failed_alone(&self, error: &CommError) -> Agreed {
        let failure = Failure { exit_code: EXIT_FAILURE, sentence: error.to_string() };
        Agreed { rank: self.topology().rank, failure, mine: true }
    }
}

impl Failure {
    /// Never empty: that means success.
    fn to_bytes(&self) -> Vec<u8> {
        [&self.exit_code.to_le_bytes()[..], self.sentence.as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Failure> {
        let (exit_code, sentence) = bytes.split_first_chunk()?;
        Some(Failure {
            exit_code: i32::from_le_bytes(*exit_code),
            sentence: String::from_utf8_lossy(sentence).into_owned(),
        })
    }
}

fn host_and_value(word: &[u8]) -> (String, String) {
    let (len, rest) =
        word.split_first_chunk().map_or((0, word), |(len, rest)| (u64::from_le_bytes(*len), rest));
    let (host, value) = rest.split_at((len as usize).min(rest.len()));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(host), text(value))
}

fn difference(what: &str, first: &(String, String), rank: usize, other: &(String, String)) -> String {
    let lines = |value: &str| value.split('\n').map(str::to_owned).collect::<Vec<_>>();
    let (ours, theirs) = (lines(&first.1), lines(&other.1));
    let common = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
    // A key that only one of the two has is not compared with the one that stands in its place.
    let lacks = |lines: &[String], others: &[String]| {
        let key = others.get(common).and_then(|line| Some(format!("{}: ", line.split_once(": ")?.0)));
        let elsewhere = |key: String| !lines.iter().any(|line| line.starts_with(&key));
        let is_keyed = lines.get(common).is_none_or(|line| line.is_empty() || line.contains(": "));
        is_keyed && key.is_some_and(elsewhere)
    };
    let shown = |lines: &[String], others: &[String]| match lines.get(common) {
        _ if lacks(lines, others) => "nothing".to_owned(),
        Some(line) if line.chars().count() > 200 => {
            format!("'{}…'", line.chars().take(200).collect::<String>())
        }
        Some(line) => format!("'{line}'"),
        None => "nothing".to_owned(),
    };
    let mut sentence = format!("{what} differs between ranks: ");
    if ours.len().max(theirs.len()) > 1 {
        let _ = write!(sentence, "in line {}, ", common + 1);
    }
    let _ = write!(
        sentence,
        "rank 0 on {} has {}, rank {rank} on {} has {}",
        first.0,
        shown(&ours, &theirs),
        other.0,
        shown(&theirs, &ours)
    );
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_process::on_each_comm_thread;

    fn failure(rank: usize) -> Failure {
        Failure {
            exit_code: 2 + rank as i32,
            sentence: format!("rank {rank} found no data: größer als erwartet"),
        }
    }

    #[test]
    fn the_lowest_rank_that_failed_speaks_for_all() {
        for (world_size, failed) in
            [(1, vec![0]), (2, vec![1]), (4, vec![3, 1]), (3, vec![0, 1, 2]), (3, vec![])]
        {
            let results = on_each_comm_thread(world_size, |comm| {
                let rank = comm.topology().rank;
                comm.agree(if failed.contains(&rank) { Err(failure(rank)) } else { Ok(rank) })
            });
            let lowest = failed.iter().copied().min();
            for (rank, result) in results.into_iter().enumerate() {
                let expected = match lowest {
                    Some(lowest) => {
                        Err(Agreed { rank: lowest, failure: failure(lowest), mine: lowest == rank })
                    }
                    None => Ok(rank),
                };
                assert_eq!(result, expected, "rank {rank} of {world_size}");
            }
        }
    }

    #[test]
    fn the_first_rank_with_another_value_is_named_with_both_values() {
        let long = "x".repeat(300);
        let of_long = format!("rank 0 on host0 has '{}…', rank 1 on host1 has ''", "x".repeat(200));
        let cases = [
            (["a", "a", "a"], None),
            (["a", "a", "b"], Some((2, "rank 0 on host0 has 'a', rank 2 on host2 has 'b'"))),
            (
                ["a\nb\nc", "a\nB\nc", "z"],
                Some((1, "in line 2, rank 0 on host0 has 'b', rank 1 on host1 has 'B'")),
            ),
            (
                ["a\nb", "a", "a\nb"],
                Some((1, "in line 2, rank 0 on host0 has 'b', rank 1 on host1 has nothing")),
            ),
            ([&long, "", ""], Some((1, &of_long))),
            (
                ["a: 1\nb: 2\nc: 3", "a: 1\nc: 3", ""],
                Some((1, "in line 2, rank 0 on host0 has 'b: 2', rank 1 on host1 has nothing")),
            ),
            (
                ["a: 1\nc: 3", "a: 1\nb: 2\nc: 3", ""],
                Some((1, "in line 2, rank 0 on host0 has nothing, rank 1 on host1 has 'b: 2'")),
            ),
            (
                ["a: 1\nb: 2", "a: 1\nb: 3", ""],
                Some((1, "in line 2, rank 0 on host0 has 'b: 2', rank 1 on host1 has 'b: 3'")),
            ),
        ];
        for (values, expected) in cases {
            let results =
                on_each_comm_thread(3, |comm| comm.agree_equal("the plan", values[comm.topology().rank]));
            for (rank, result) in results.into_iter().enumerate() {
                let expected = expected.map(|(failed, sentence)| Agreed {
                    rank: failed,
                    failure: Failure {
                        exit_code: 1,
                        sentence: format!("the plan differs between ranks: {sentence}"),
                    },
                    mine: rank == failed,
                });
                assert_eq!(result.err(), expected, "rank {rank}: {values:?}");
            }
        }
    }

    #[test]
    fn without_communication_a_rank_fails_alone() {
        let results = on_each_comm_thread(2, |comm| {
            comm.abort(1);
            comm.agree(Ok(()))
        });
        for (rank, result) in results.into_iter().enumerate() {
            let sentence = CommError::Aborted.to_string();
            assert_eq!(result, Err(Agreed { rank, failure: Failure { exit_code: 1, sentence }, mine: true }));
        }
    }
}
