//! Spans as OTLP has them (opentelemetry-proto 1.x, `ExportTraceServiceRequest`).

use std::time::{SystemTime, UNIX_EPOCH};

use iap_identity::{SpanId, TraceId};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as WireSpan, Status};
use prost::Message as _;

use super::span::{Kind, Span, Value};
use super::{Details, Program};

/// W3C Trace Context §3.2.2.5: the trace is recorded.
const FLAG_SAMPLED: u32 = 1;
const SCOPE: &str = "iap";

/// The resource that all spans of a program share.
pub(super) fn resource(program: &Program) -> Resource {
    let mut details = Details::default();
    details.text("service.name", program.name);
    details.text("service.version", program.version);
    if let Some(instance) = &program.instance {
        details.text("service.instance.id", instance);
    }
    if let Some(cluster) = &program.cluster {
        details.text("iap.cluster", cluster);
    }
    Resource {
        attributes: attributes(details.attributes),
        ..Resource::default()
    }
}

/// The body of one request.
pub(super) fn encode(resource: &Resource, spans: Vec<Span>) -> Vec<u8> {
    let scope_spans = ScopeSpans {
        scope: Some(InstrumentationScope {
            name: SCOPE.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        }),
        spans: spans.into_iter().map(span).collect(),
        schema_url: String::new(),
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource.clone()),
            scope_spans: vec![scope_spans],
            schema_url: String::new(),
        }],
    };
    request.encode_to_vec()
}

fn span(span: Span) -> WireSpan {
    let Details {
        attributes: said,
        links,
        failure,
    } = span.details;
    WireSpan {
        trace_id: span.trace.as_bytes().to_vec(),
        span_id: span.id.as_bytes().to_vec(),
        parent_span_id: span.parent.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
        flags: FLAG_SAMPLED,
        name: span.name.to_owned(),
        kind: kind(span.kind).into(),
        start_time_unix_nano: nanoseconds(span.began),
        end_time_unix_nano: nanoseconds(span.ended),
        attributes: attributes(said),
        links: links.into_iter().map(link).collect(),
        status: failure.map(|message| Status {
            message,
            code: StatusCode::Error.into(),
        }),
        ..WireSpan::default()
    }
}

fn kind(kind: Kind) -> SpanKind {
    match kind {
        Kind::Internal => SpanKind::Internal,
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
    }
}

fn link((trace, span): (TraceId, SpanId)) -> Link {
    Link {
        trace_id: trace.as_bytes().to_vec(),
        span_id: span.as_bytes().to_vec(),
        flags: FLAG_SAMPLED,
        ..Link::default()
    }
}

fn attributes(said: Vec<(&'static str, Value)>) -> Vec<KeyValue> {
    said.into_iter()
        .map(|(name, value)| KeyValue {
            key: name.to_owned(),
            value: Some(AnyValue {
                value: Some(match value {
                    Value::Text(text) => any_value::Value::StringValue(text),
                    Value::Number(number) => {
                        any_value::Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX))
                    }
                    Value::Truth(truth) => any_value::Value::BoolValue(truth),
                }),
            }),
            ..KeyValue::default()
        })
        .collect()
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
