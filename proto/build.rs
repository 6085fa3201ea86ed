//! Compiles `kage/v1/*.proto` without protoc: protox parses, tonic-prost-build generates.

use std::path::PathBuf;

const FILES: [&str; 16] = [
    "kage/v1/value.proto",
    "kage/v1/task.proto",
    "kage/v1/event.proto",
    "kage/v1/diff.proto",
    "kage/v1/task_service.proto",
    "kage/v1/context_service.proto",
    "kage/v1/fleet_service.proto",
    "kage/v1/agent_service.proto",
    "kage/v1/event_service.proto",
    "kage/v1/model_gate_service.proto",
    "kage/v1/cost_service.proto",
    "kage/v1/enrollment_service.proto",
    "kage/v1/access_service.proto",
    "kage/v1/checkpoint_service.proto",
    "kage/v1/server_service.proto",
    "kage/v1/project_service.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=kage/v1");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("kage.v1.bin"), prost::Message::encode_to_vec(&descriptors))?;
    // By its name a message's descriptor is found, for JSON.
    let mut names = tonic_prost_build::Config::new();
    names.enable_type_names();
    tonic_prost_build::configure()
        // Its `connect` would clash with `AgentService.Connect`; clients are made from a channel.
        .build_transport(false)
        .codec_path("crate::codec::SmallCodec")
        // The same message is the same bytes, however often it is written.
        .btree_map(".")
        // The largest message by far, which queues of the small ones must not make room for.
        .boxed(".kage.v1.ConnectResponse.message.offer")
        // Likewise: a queue has room for 32, and every watch has one.
        .boxed(".kage.v1.WatchTaskResponse.item.task")
        .boxed(".kage.v1.WatchTaskResponse.item.event")
        .boxed(".kage.v1.WatchTasksResponse.item.task")
        .boxed(".kage.v1.WatchTasksResponse.item.agent")
        // Most work begins at the base, and messages are as large as their largest part.
        .boxed(".kage.v1.SessionWork.resume")
        .bytes(".kage.v1.OutputBatch.data")
        .bytes(".kage.v1.OutputChunk.data")
        .bytes(".kage.v1.PutContextRequest.content")
        .bytes(".kage.v1.GetContextResponse.content")
        .compile_fds_with_config(descriptors, names)?;
    Ok(())
}
