//! Who is told of which change (wire 7).
