//! Executes committed entries, queues events and replies, then publishes.
