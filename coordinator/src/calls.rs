//! Calls of models that wait here: for their turn ([`turns`]), and for money that others hold back ([`freed`]). Nobody
//! else owns who waits. Whether they may go is core's `call_queue` and `budget`.

mod freed;
mod turns;

pub(crate) use freed::{BudgetLines, BudgetPlace};
pub(crate) use turns::CallTurns;
