//! What the binary and the criterion benches share: data like that of recorded reasoning, the slow
//! oracle that every answer is checked against, and the machine's own limit.

pub mod limit;
pub mod oracle;
pub mod replay;
pub mod traces;
