//! What every kind's connections are made of: dialling, TLS, HTTP/1, gRPC.

pub(crate) mod address;
pub(crate) mod browser;
pub(crate) mod dial;
pub(crate) mod endpoint;
pub(crate) mod freshness;
pub(crate) mod grpc;
pub(crate) mod http1;
pub(crate) mod http1_dial;
pub(crate) mod linger;
pub(crate) mod local;
pub(crate) mod percent;
pub(crate) mod secret;
#[cfg(test)]
pub(crate) mod test_certificates;
pub(crate) mod test_listener;
#[cfg(test)]
pub(crate) mod test_port;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod tls;
pub(crate) mod tls_server;
pub(crate) mod trace_headers;
