//! Where rank 0 listens: on the one network that all ranks share, if there is one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// An address of a host and the network it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostAddress {
    pub(crate) ip: IpAddr,
    /// Leading bits that the addresses of the network have in common.
    pub(crate) prefix: u8,
}

/// The addresses of this host that others can reach: no loopback, no link-local ones; IPv4 first.
pub(crate) fn of_this_host() -> Vec<HostAddress> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let mut addresses: Vec<HostAddress> = interfaces
        .into_iter()
        .filter(|interface| !interface.is_loopback() && !interface.is_link_local())
        .map(|interface| match interface.addr {
            if_addrs::IfAddr::V4(address) => {
                HostAddress { ip: address.ip.into(), prefix: u32::from(address.netmask).leading_ones() as u8 }
            }
            if_addrs::IfAddr::V6(address) => HostAddress {
                ip: address.ip.into(),
                prefix: u128::from(address.netmask).leading_ones() as u8,
            },
        })
        .collect();
    addresses.sort_by_key(|address| address.ip.is_ipv6());
    addresses
}

/// Where to listen, and under which addresses others should try to connect, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bind: IpAddr,
    pub(crate) reach: Vec<IpAddr>,
}

/// Chooses for rank 0 among `hosts`, the addresses of every rank's host, rank 0's first.
///
/// Ranks on one host need the loopback interface only. Else it is the first network of rank 0 in which every
/// other host has an address as well; an address that several hosts have is no way to any of them, such as
/// that of a container bridge. Without such a network, packets must be routed: all addresses are tried.
pub(crate) fn choose(all_on_one_host: bool, hosts: &[Vec<HostAddress>]) -> Place {
    // Also where nothing but the loopback interface is there, though a launcher speaks of several nodes.
    if all_on_one_host || hosts.iter().all(Vec::is_empty) {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        return Place { bind: loopback, reach: vec![loopback] };
    }
    let Some((own, others)) = hosts.split_first() else {
        return Place { bind: Ipv4Addr::UNSPECIFIED.into(), reach: Vec::new() };
    };
    // Ranks on rank 0's own host have the same addresses.
    let others: Vec<_> = others.iter().filter(|other| *other != own).collect();
    let is_everywhere = |address: &HostAddress| {
        let shared = |other: &HostAddress| other.ip != address.ip && same_network(address, other.ip);
        others.iter().all(|addresses| addresses.iter().any(shared))
    };
    let local_to_hosts =
        |address: &HostAddress| others.iter().any(|other| other.iter().any(|o| o.ip == address.ip));
    let candidates: Vec<_> = own.iter().filter(|address| !local_to_hosts(address)).collect();
    match candidates.iter().find(|address| is_everywhere(address)) {
        Some(address) => Place { bind: address.ip, reach: vec![address.ip] },
        None => {
            let reach: Vec<IpAddr> = candidates.iter().map(|address| address.ip).collect();
            let bind = match reach.iter().any(IpAddr::is_ipv4) {
                true => Ipv4Addr::UNSPECIFIED.into(),
                false => Ipv6Addr::UNSPECIFIED.into(),
            };
            let reachable = |ip: &IpAddr| ip.is_ipv4() == IpAddr::is_ipv4(&bind);
            Place { bind, reach: reach.into_iter().filter(reachable).collect() }
        }
    }
}

fn same_network(address: &HostAddress, other: IpAddr) -> bool {
    let (a, b, width) = match (address.ip, other) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return false,
    };
    let differing = width - u32::from(address.prefix).min(width);
    // A network of the whole width is a host alone.
    differing == width || (a ^ b) >> differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(addresses: &[&str]) -> Vec<HostAddress> {
        let parse = |text: &&str| {
            let (ip, prefix) = text.split_once('/').unwrap();
            HostAddress { ip: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
        };
        addresses.iter().map(parse).collect()
    }

    #[test]
    fn rank_0_listens_on_the_network_that_all_hosts_share() {
        /// Name, the addresses of every rank's host, where to listen, where to be reached.
        type Case = (&'static str, &'static [&'static [&'static str]], &'static str, &'static [&'static str]);
        const BRIDGE: &str = "172.17.0.1/16";
        let cases: [Case; 6] = [
            (
                "two hosts, bridges first",
                &[&[BRIDGE, "10.0.0.1/24"], &[BRIDGE, "10.0.0.2/24"]],
                "10.0.0.1",
                &["10.0.0.1"],
            ),
            (
                "a fast network only some have",
                &[&["10.1.0.1/24", "10.0.0.1/24"], &["10.1.0.2/24", "10.0.0.2/24"], &["10.0.0.3/24"]],
                "10.0.0.1",
                &["10.0.0.1"],
            ),
            (
                "a rank beside rank 0, another elsewhere",
                &[&["10.0.0.1/24"], &["10.0.0.1/24"], &["10.0.0.2/24"]],
                "10.0.0.1",
                &["10.0.0.1"],
            ),
            (
                "routed",
                &[&[BRIDGE, "10.0.0.1/24", "fd00::1/64"], &[BRIDGE, "10.0.1.1/24"]],
                "0.0.0.0",
                &["10.0.0.1"],
            ),
            ("IPv6 only", &[&["fd00::1/64"], &["fd00::2/64"]], "fd00::1", &["fd00::1"]),
            ("IPv6 only, routed", &[&["fd00::1/64"], &["fd01::2/64"]], "::", &["fd00::1"]),
        ];
        for (name, hosts, bind, reach) in cases {
            let hosts: Vec<_> = hosts.iter().map(|addresses| host(addresses)).collect();
            let reach = reach.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(choose(false, &hosts), Place { bind: bind.parse().unwrap(), reach }, "{name}");
            let loopback: IpAddr = "127.0.0.1".parse().unwrap();
            assert_eq!(choose(true, &hosts), Place { bind: loopback, reach: vec![loopback] });
        }
    }

    #[test]
    fn addresses_of_this_host_are_not_loopback() {
        assert!(of_this_host().iter().all(|address| !address.ip.is_loopback()));
    }
}
