//! The connector against real servers.
