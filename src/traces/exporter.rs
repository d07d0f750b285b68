//! The exporter of the chosen protocol.

use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry::KeyValue;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter as _},
};
use tonic::transport::{Certificate, ClientTlsConfig};

use super::settings::{Protocol, Settings};
use crate::net::tls;

/// Sends spans to the collector.
#[derive(Debug)]
pub(super) struct Exporter(SpanExporter);

impl Exporter {
    /// An exporter that has not connected yet. To be called within a runtime.
    ///
    /// # Errors
    /// What cannot be used of the settings or of the environment.
    pub(super) fn new(settings: &Settings, instance: &str) -> Result<Self, String> {
        let built = match settings.protocol {
            Protocol::Grpc => grpc(settings)?,
            Protocol::Http => http(settings)?,
        };
        let mut exporter = built;
        let mut resource = Resource::builder();
        if let Some(name) = settings.service_name {
            resource = resource.with_service_name(name);
        }
        let resource = resource
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .build();
        exporter.set_resource(&resource);
        Ok(Self(exporter))
    }

    /// Exports spans, and retries for as long as the exporter's timeout lets it.
    pub(super) async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        self.0.export(spans).await
    }
}

fn grpc(settings: &Settings) -> Result<SpanExporter, String> {
    let builder = SpanExporter::builder().with_tonic();
    let mut builder = builder.with_endpoint(&settings.endpoint);
    if settings.endpoint.starts_with("https:") {
        let mut tls = ClientTlsConfig::new();
        if let Some(file) = &settings.certificate {
            let pem =
                std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        } else {
            tls = tls.with_native_roots();
        }
        builder = builder.with_tls_config(tls);
    }
    builder.build().map_err(|error| error.to_string())
}

fn http(settings: &Settings) -> Result<SpanExporter, String> {
    let config = tls::config(settings.certificate.as_deref(), &[])
        .map_err(|why| why.replace("tls.ca_file", "OTEL_EXPORTER_OTLP_CERTIFICATE"))?;
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
    // The exporter reads the address itself: it appends the path to one that is meant for all signals.
    SpanExporter::builder()
        .with_http()
        .with_http_client(HyperClient::new(connector, settings.batching.timeout, None))
        .build()
        .map_err(|error| error.to_string())
}
