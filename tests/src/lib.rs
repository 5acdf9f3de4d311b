//! Whole-system tests. The programs under `src/bin` are the shipped ones, built into this package so
//! that `CARGO_BIN_EXE_*` names them and no test runs a stale binary.
