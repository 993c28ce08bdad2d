//! Scripts that read as stories (`testscripts/`), and random transactions against a naive model.

mod check;
mod random;
mod script;
