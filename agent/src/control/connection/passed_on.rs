//! What the coordinator passes on to running attempts: what people want of them, and what people say.

use kage_core::session::Answer;
use kage_proto::convert::checkpoint::asked_reason;
use kage_proto::v1;

use super::{Connection, parse};
use crate::adapters::hearing::Said;
use crate::adapters::steps::CheckpointRequest;

impl Connection {
    /// A checkpoint that a person wants.
    pub(super) fn take_checkpoint(&self, wanted: v1::TakeCheckpoint) {
        let reason = match asked_reason("reason", wanted.reason) {
            Ok(reason) => reason,
            Err(error) => return tracing::warn!(%error, "a checkpoint is not taken"),
        };
        let request = CheckpointRequest {
            reason,
            note: wanted.note,
        };
        if let Some(attempt) = parse(&wanted.attempt_id)
            && !self.parts.resources.live.ask(attempt, request)
        {
            tracing::info!(%attempt, "takes no checkpoint now");
        }
    }

    /// What an attempt does not take, because it is ending, the next one is told.
    pub(super) fn say(
        &self,
        v1::Say {
            attempt_id,
            number,
            text,
        }: v1::Say,
    ) {
        if let Some(attempt) = parse(&attempt_id)
            && let Some(hearing) = self.parts.resources.live.hearing(attempt)
        {
            hearing.say(Said { number, text });
        }
    }

    /// A person's answer to what the attempt's program asks.
    pub(super) fn answer(&self, answered: v1::AnswerQuestion) {
        if let Some(attempt) = parse(&answered.attempt_id)
            && let Some(hearing) = self.parts.resources.live.hearing(attempt)
        {
            let answer = Answer {
                allow: answered.allow,
                by: answered.answered_by,
            };
            hearing.answer(answered.number, answer);
        }
    }
}
