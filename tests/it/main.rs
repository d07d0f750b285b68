//! The integration tests: the real daemon against real servers.

#[cfg(test)]
mod after_a_crash;
#[cfg(test)]
mod alerts;
#[cfg(test)]
mod all_three;
#[cfg(test)]
mod backup;
#[cfg(test)]
mod breaker;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod clickhouse;
#[cfg(test)]
mod clickhouse_door;
#[cfg(test)]
mod clickhouse_once;
#[cfg(test)]
mod clickhouse_outcomes;
#[cfg(test)]
mod deadlines;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod encodings;
#[cfg(test)]
mod events;
#[cfg(test)]
mod examples;
#[cfg(test)]
mod extremes;
#[cfg(test)]
mod fallbacks;
#[cfg(test)]
mod firestore;
#[cfg(test)]
mod firestore_client;
#[cfg(test)]
mod firestore_door;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod frozen;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod house;
#[cfg(test)]
mod kv;
#[cfg(test)]
mod lanes;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod numbers;
#[cfg(test)]
mod openapi;
#[cfg(test)]
mod order;
#[cfg(test)]
mod packaging;
#[cfg(test)]
mod page;
#[cfg(test)]
mod prediction;
#[cfg(test)]
mod purge;
#[cfg(test)]
mod queue_moves;
#[cfg(test)]
mod recordings;
#[cfg(test)]
mod redis_door;
#[cfg(test)]
mod redis_door_clients;
#[cfg(test)]
mod redis_markers;
#[cfg(test)]
mod redis_scripts;
#[cfg(test)]
mod seams;
mod selftest;
mod settings;
#[cfg(test)]
mod shares;
mod simulate;
#[cfg(test)]
mod state_dir;
#[cfg(test)]
mod stopping;
#[cfg(test)]
mod supervision;
#[cfg(test)]
mod support;
#[cfg(test)]
mod system_state;
#[cfg(test)]
mod systemd;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod watching;
#[cfg(test)]
mod who_sees;
#[cfg(test)]
mod would_be;
