//! ZooKeeper's records, byte for byte, both directions.
