//! Whole-system benchmarks through the public API: each figure is compared with a named baseline
//! from the same run. Data is seeded and incompressible, and checksums are compared at the
//! receiving end. Nothing here takes a path that production does not.

pub mod adapter;
pub mod baseline;
pub mod figure;
pub mod fleet;
pub mod held;
pub mod machine;
pub mod medium;
pub mod tree;
pub mod usage;

pub mod adapter_overhead;
pub mod billing;
pub mod checkpoint;
pub mod contain;
pub mod context;
pub mod context_split;
pub mod dispatch;
pub mod gate;
pub mod idle;
pub mod output;
pub mod proxy;
pub mod recovery;
pub mod restore;
pub mod stream;
pub mod task;
pub mod tools;
pub mod workspace;
pub mod neighbour;
