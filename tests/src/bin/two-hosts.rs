//! Runs `wrn-dist` on two hosts that are network namespaces: `two-hosts RANKS_A_HOST RATE COMMAND…`, where RATE is
//! that of the link as `tc` writes it, such as 1gbit. Takes root.

use std::process::ExitCode;

use end_to_end::TwoHosts;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some((slots, [rate, command @ ..])), true) = (arguments.split_first(), arguments.len() > 2) else {
        eprintln!("usage: two-hosts RANKS_A_HOST RATE COMMAND…");
        return ExitCode::from(2);
    };
    let Ok(slots) = slots.parse() else {
        eprintln!("two-hosts: `{slots}` is no number of ranks");
        return ExitCode::from(2);
    };
    let Some(hosts) = TwoHosts::set_up_or_skip(slots, rate) else { return ExitCode::FAILURE };
    let outcome = hosts.wrn_dist(&command.iter().map(String::as_str).collect::<Vec<_>>());
    print!("{}", outcome.stdout);
    eprint!("{}", outcome.stderr);
    outcome.code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
