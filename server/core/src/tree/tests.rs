//! Scripts that read as stories (`testscripts/`), and random transactions against a naive model.

mod model;
mod random;
mod script;
