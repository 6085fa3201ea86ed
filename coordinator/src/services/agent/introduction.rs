//! An agent's description of itself in its Hello, as far as the coordinator trusts it.

use kage_core::access::{Admittance, Capabilities, LetIn};
use kage_core::task::Labels;
use kage_proto::convert::agent::Hello;
use kage_proto::status::ApiError;
use kage_proto::{PROTOCOL, PROTOCOL_MIN};

use crate::door::auth::Principal;

/// Labels that a joined agent may add to those of its join token: facts about its machine.
const OWN_LABELS: [&str; 2] = ["arch", "os"];

/// The labels of an agent: its own claim if it has the owner's token or is the own agent, otherwise those of its join
/// token. A label is a right to work on tasks that require it.
pub(super) fn labels(caller: &Principal, said: Labels) -> Labels {
    let Principal::Agent { labels: given, .. } = caller else {
        return said;
    };
    let own = said.into_iter().filter(|(key, value)| {
        let counts = OWN_LABELS.contains(&key.as_str());
        if !counts && given.get(key) != Some(value) {
            tracing::warn!(key, value, "an agent claims a label that it was not given");
        }
        counts
    });
    own.chain(given.clone()).collect()
}

/// What let an agent in, and what it may be given to do. `of_token` is for those with the owner's token.
pub(super) const fn admittance(caller: &Principal, of_token: Capabilities) -> Admittance {
    match caller {
        Principal::Agent { can, .. } => Admittance {
            by: LetIn::Certificate,
            can: *can,
        },
        Principal::OwnAgent { .. } => Admittance {
            by: LetIn::SameProcess,
            can: Capabilities::ALL,
        },
        Principal::Owner => Admittance {
            by: LetIn::OwnersToken,
            can: of_token,
        },
        // The door lets neither of them be an agent.
        Principal::Person { .. } | Principal::Stranger => Admittance {
            by: LetIn::OwnersToken,
            can: Capabilities::NONE,
        },
    }
}

/// The newest protocol that both sides speak.
pub(super) fn agreed_protocol(hello: &Hello) -> Result<u32, ApiError> {
    let newest = PROTOCOL.min(*hello.protocols.end());
    if newest < PROTOCOL_MIN || newest < *hello.protocols.start() {
        let (min, max) = (hello.protocols.start(), hello.protocols.end());
        return Err(ApiError::OtherProtocol {
            message: format!(
                "the agent speaks protocols {min} to {max}, this coordinator {PROTOCOL_MIN} to {PROTOCOL}; \
                 update the older of the two"
            ),
        });
    }
    Ok(newest)
}
