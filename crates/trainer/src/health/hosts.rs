//! Names of ranks for people, with the hosts they are on. What a rank is named for is not decided here.

use crate::error::Error;
use crate::session::Session;

/// So many ranks are named, or all but so many left out.
const MOST_NAMED: usize = 4;

/// The host of each rank.
pub(crate) struct Hosts(Vec<String>);

impl Hosts {
    /// Collective.
    pub(crate) fn of(session: &Session) -> Result<Self, Error> {
        let hosts = session.comm().all_gather(session.topology().host.clone().into_bytes())?;
        Ok(Hosts(hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect()))
    }

    /// `rank 1 on node7, rank 3 on node8`, or a part of many; nothing for none, and for a rank that is the only one.
    pub(crate) fn name(&self, ranks: &[usize]) -> Option<String> {
        if ranks.is_empty() || self.0.len() == 1 {
            return None;
        }
        if ranks.len() == self.0.len() {
            return Some("all ranks".into());
        }
        let name = |rank: &usize| match self.0.get(*rank) {
            Some(host) => format!("rank {rank} on {host}"),
            None => format!("rank {rank}"),
        };
        let named: Vec<String> = ranks.iter().take(MOST_NAMED).map(name).collect();
        let more = match ranks.len() - named.len() {
            0 => String::new(),
            1 => " and 1 more rank".into(),
            more => format!(" and {more} more ranks"),
        };
        Some(named.join(", ") + &more)
    }

    /// The rank with the highest of `losses`, by rank, and that loss; nothing where there is only one rank.
    pub(crate) fn name_highest(&self, losses: &[f32]) -> Option<String> {
        let highest = losses.iter().copied().enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other));
        let (rank, loss) = highest?;
        Some(format!("{} ({loss:.4})", self.name(&[rank])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_ranks_are_named_with_their_hosts_and_of_many_a_part() {
        let hosts = |ranks: usize| Hosts((0..ranks).map(|rank| format!("node{}", rank / 4)).collect());
        for (world_size, ranks, expected) in [
            (1, vec![0], None),
            (8, vec![], None),
            (8, vec![5], Some("rank 5 on node1")),
            (8, vec![1, 4], Some("rank 1 on node0, rank 4 on node1")),
            (
                8,
                vec![0, 1, 2, 3, 4],
                Some("rank 0 on node0, rank 1 on node0, rank 2 on node0, rank 3 on node0 and 1 more rank"),
            ),
            (
                9,
                vec![0, 1, 2, 3, 4, 7],
                Some("rank 0 on node0, rank 1 on node0, rank 2 on node0, rank 3 on node0 and 2 more ranks"),
            ),
            (2, vec![0, 1], Some("all ranks")),
        ] {
            assert_eq!(hosts(world_size).name(&ranks).as_deref(), expected, "{ranks:?} of {world_size}");
        }
        assert_eq!(hosts(8).name_highest(&[1.0, 2.5, 0.5]).as_deref(), Some("rank 1 on node0 (2.5000)"));
        assert_eq!(hosts(1).name_highest(&[1.0]), None);
    }
}
