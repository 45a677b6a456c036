//! The fuzz targets are tests of deepconf-core, which `cargo test` runs on inputs of its own.

#[path = "../../rust/core/tests/driver/mod.rs"]
mod driver;
#[path = "../../rust/core/tests/oracle/mod.rs"]
mod oracle;
#[path = "../../rust/core/tests/quanta/mod.rs"]
mod quanta;
#[path = "../../rust/core/tests/reference/mod.rs"]
mod reference;
#[path = "../../rust/core/tests/targets/mod.rs"]
pub mod targets;
#[path = "../../rust/core/tests/traces/mod.rs"]
mod traces;
