//! Initial weights that must stay what they are, bit for bit.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::network;
use model::{Network, Options};
use xxhash_rust::xxh3::xxh3_64;

/// Hash of every name, shape and initial value, and of the order of readiness.
fn fingerprint(network: &Network) -> u64 {
    let mut bytes = Vec::new();
    for (index, parameter) in network.parameters().iter().enumerate() {
        bytes.extend(parameter.name.bytes());
        bytes.extend(parameter.shape.iter().flat_map(|side| side.to_le_bytes()));
        bytes.extend(network.initial(index, 1).iter().flat_map(|value| value.to_le_bytes()));
    }
    bytes.extend(network.readiness_order().iter().flat_map(|&place| (place as u64).to_le_bytes()));
    xxh3_64(&bytes)
}

#[test]
fn a_saved_run_can_be_continued_since_names_and_initial_weights_stay() {
    for (architecture, expected) in [
        ("wrn-10-1", 0x3fd9_982f_4139_b038),
        ("wrn-16-2", 0xfc44_0700_2dca_6d6d),
        ("wrn-28-2", 0x72c8_8904_854d_d4f6),
        ("wrn-40-1", 0xd561_18af_f797_3c8a),
    ] {
        let network = network(architecture, &Options { dropout: 0.3, ..Options::default() });
        assert_eq!(fingerprint(&network), expected, "{architecture}");
    }
}
