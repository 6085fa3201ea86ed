//! The agent's identity: its state folder and id, how it joins a coordinator, its credentials, and
//! the renewal of its certificate.

pub mod state;
pub mod enrolment;
pub mod trust;
pub mod renewal;
