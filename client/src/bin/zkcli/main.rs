//! zkcli.

mod command;
mod print;
mod walk;

fn main() {}
