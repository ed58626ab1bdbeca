//! Bytes as values: what comes from outside the process is read by total functions, which answer any bytes with a
//! value or an error.

#![forbid(unsafe_code)]

pub mod handover;
