//! Who this agent is, and how it shows that: its state folder and id, how it joins a coordinator,
//! what it holds to be let in, and the renewal of its certificate.

pub mod state;
pub mod enrolment;
pub mod trust;
pub mod renewal;
