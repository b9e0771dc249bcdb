//! The identity extension: one encoding per value, and everything else refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use iap_identity::extension::DerError;
use iap_identity::{
    Class, ClusterName, ExtensionError, GroupName, IDENTITY_EXTENSION_BYTES_MAX, IDENTITY_EXTENSION_OID,
    IdentityExtension, IdentityProvider, LoginId,
};
use proptest::prelude::*;
use time::OffsetDateTime;
use time::macros::datetime;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::der_parser::der::{DerObject, DerObjectContent, parse_der};

/// Encoded by hand outside this code base (X.690 with the schema in `extension.rs`). Other
/// implementations may test against it; it must never change.
const FULL_VECTOR: &str = "\
    3082011a0201010a01000c1070726f642e6578616d706c652e636f6d0c1c752d6137786b6d7671327a7435633368776e\
    346272643679666a676504100190f3a27c5e7b8a9d0e1f2a3b4c5d6ea011180f32303236303930313038303030305aa1\
    11180f32303236303930313230303030305aa20402020080a33430320c046f6b74610c1768747470733a2f2f6964702e\
    6578616d706c652e636f6d0c0830307531616263640c0775726e3a6d6661a4090c0762726f77736572a511180f323032\
    36303930313038303130355aa60a0c086c6170746f702d37a72230200c106f6b74613a656e67696e656572696e670c0c\
    6f6b74613a6f6e2d63616c6ca80302012aa911180f32303236303930313038303031305aaa080c06c3846c696365";
/// A proxy's: nothing but the required fields.
const SMALL_VECTOR: &str = "\
    303e0201010a01020c1070726f642e6578616d706c652e636f6d0c2430313930663361322d376335652d376238612d39\
    6430652d316632613362346335643665";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn full() -> IdentityExtension {
    IdentityExtension {
        kind: Class::User,
        cluster: ClusterName::parse("prod.example.com").unwrap(),
        principal: "u-a7xkmvq2zt5c3hwn4brd6yfjge".to_owned(),
        login_id: Some(LoginId::parse("0190f3a2-7c5e-7b8a-9d0e-1f2a3b4c5d6e").unwrap()),
        auth_time: Some(datetime!(2026-09-01 08:00 UTC)),
        login_deadline: Some(datetime!(2026-09-01 20:00 UTC)),
        generation: Some(128),
        idp: Some(IdentityProvider {
            connector: "okta".to_owned(),
            issuer: "https://idp.example.com".to_owned(),
            subject: "00u1abcd".to_owned(),
            acr: Some("urn:mfa".to_owned()),
        }),
        login_method: Some("browser".to_owned()),
        mfa_time: Some(datetime!(2026-09-01 08:01:05 UTC)),
        device_id: Some("laptop-7".to_owned()),
        groups: ["okta:engineering", "okta:on-call"]
            .map(|name| GroupName::parse(name).unwrap())
            .to_vec(),
        groups_vocabulary: Some(42),
        groups_as_of: Some(datetime!(2026-09-01 08:00:10 UTC)),
        name: Some("Älice".to_owned()),
    }
}

fn small() -> IdentityExtension {
    let id = "0190f3a2-7c5e-7b8a-9d0e-1f2a3b4c5d6e".to_owned();
    IdentityExtension::new(Class::Proxy, ClusterName::parse("prod.example.com").unwrap(), id)
}

#[test]
fn the_vectors_are_written_and_read_exactly() {
    for (vector, value) in [(FULL_VECTOR, full()), (SMALL_VECTOR, small())] {
        assert_eq!(value.to_der().unwrap(), bytes(vector));
        assert_eq!(IdentityExtension::from_der(&bytes(vector)).unwrap(), value);
    }
}

#[test]
fn an_independent_parser_finds_the_documented_structure_in_the_vector() {
    let vector = bytes(FULL_VECTOR);
    let (rest, object) = parse_der(&vector).unwrap();
    assert!(rest.is_empty());
    let fields = object.as_sequence().unwrap();
    assert_eq!(fields[0].as_u32().unwrap(), 1);
    assert!(matches!(fields[1].content, DerObjectContent::Enum(0)));
    assert_eq!(fields[2].as_str().unwrap(), "prod.example.com");
    assert_eq!(fields[3].as_str().unwrap(), "u-a7xkmvq2zt5c3hwn4brd6yfjge");
    assert_eq!(fields[4].as_slice().unwrap(), full().login_id.unwrap().as_bytes());
    let numbers: Vec<u32> = fields[5..].iter().map(|field| field.header.tag().0).collect();
    assert_eq!(numbers, (0..=10).collect::<Vec<_>>());
    for (index, tag) in [
        (5, Tag::GeneralizedTime),
        (7, Tag::Integer),
        (8, Tag::Sequence),
        (12, Tag::Sequence),
    ] {
        assert_eq!(explicit(&fields[index]).header.tag(), tag);
    }
    let groups = explicit(&fields[12]);
    assert_eq!(groups.as_sequence().unwrap()[1].as_str().unwrap(), "okta:on-call");
}

/// What an EXPLICIT tag wraps.
fn explicit<'a>(field: &DerObject<'a>) -> DerObject<'a> {
    let DerObjectContent::Unknown(any) = &field.content else {
        panic!("{field:?} is not tagged")
    };
    let (rest, inner) = parse_der(any.data).unwrap();
    assert!(rest.is_empty());
    inner
}

#[test]
fn the_object_identifier_stays_in_the_documentation_arc_until_one_is_registered() {
    assert_eq!(IDENTITY_EXTENSION_OID, "1.3.6.1.4.1.32473.1.1");
    let parts = iap_identity::extension::IDENTITY_EXTENSION_OID_PARTS.map(|part| part.to_string());
    assert_eq!(parts.join("."), IDENTITY_EXTENSION_OID);
}

#[test]
fn trailing_bytes_are_refused_inside_and_outside() {
    let mut outside = bytes(SMALL_VECTOR);
    outside.push(0);
    assert_eq!(
        IdentityExtension::from_der(&outside),
        Err(DerError::TrailingData.into())
    );
    let mut inside = bytes(SMALL_VECTOR);
    inside.extend([0x05, 0x00]);
    inside[1] += 2;
    assert_eq!(
        IdentityExtension::from_der(&inside),
        Err(DerError::TrailingData.into())
    );
}

#[test]
fn repeated_and_misordered_fields_are_refused() {
    let generation = [0xa2, 0x03, 0x02, 0x01, 0x05];
    let method = [0xa4, 0x03, 0x0c, 0x01, b'b'];
    let with = |fields: &[&[u8]]| {
        let mut vector = bytes(SMALL_VECTOR);
        vector.extend(fields.concat());
        vector[1] = u8::try_from(vector.len() - 2).unwrap();
        IdentityExtension::from_der(&vector)
    };
    assert_eq!(with(&[&generation, &method]).unwrap().generation, Some(5));
    assert_eq!(
        with(&[&generation, &generation]),
        Err(DerError::TrailingData.into())
    );
    assert_eq!(with(&[&method, &generation]), Err(DerError::TrailingData.into()));
    assert_eq!(
        with(&[&[0xab, 0x00]]),
        Err(DerError::TrailingData.into()),
        "an unknown field"
    );
    assert_eq!(
        with(&[&[0xa7, 0x02, 0x30, 0x00]]),
        Err(DerError::Truncated.into()),
        "an empty list of groups"
    );
}

#[test]
fn lengths_and_integers_have_one_spelling() {
    let small = bytes(SMALL_VECTOR);
    let mut long_form = vec![0x30, 0x81, small[1]];
    long_form.extend(&small[2..]);
    assert_eq!(
        IdentityExtension::from_der(&long_form),
        Err(DerError::Length.into())
    );
    let mut indefinite = vec![0x30, 0x80];
    indefinite.extend(&small[2..]);
    indefinite.extend([0, 0]);
    assert_eq!(
        IdentityExtension::from_der(&indefinite),
        Err(DerError::Length.into())
    );
    // generation 128 is 0200 80; 2080 would be negative, 0300 0080 too long.
    let full = bytes(FULL_VECTOR);
    let at = full
        .windows(6)
        .position(|window| window == [0xa2, 0x04, 0x02, 0x02, 0x00, 0x80])
        .unwrap();
    let mut negative = full.clone();
    negative[at + 4] = 0x80;
    assert_eq!(
        IdentityExtension::from_der(&negative),
        Err(DerError::Integer.into())
    );
    let mut padded = full;
    padded[at + 5] = 0x7f;
    assert_eq!(
        IdentityExtension::from_der(&padded),
        Err(DerError::Integer.into())
    );
}

#[test]
fn unknown_versions_and_kinds_are_refused() {
    let mut version = bytes(SMALL_VECTOR);
    version[4] = 2;
    assert_eq!(
        IdentityExtension::from_der(&version),
        Err(ExtensionError::Version(2))
    );
    let mut kind = bytes(SMALL_VECTOR);
    kind[7] = 6;
    assert_eq!(IdentityExtension::from_der(&kind), Err(ExtensionError::Kind(6)));
}

#[test]
fn only_whole_zulu_seconds_of_real_dates_are_times() {
    let at = |time: &[u8; 15]| {
        let mut vector = bytes(FULL_VECTOR);
        let position = vector
            .windows(15)
            .position(|window| window == b"20260901080000Z")
            .unwrap();
        vector[position..position + 15].copy_from_slice(time);
        IdentityExtension::from_der(&vector).map(|read| read.auth_time.unwrap())
    };
    assert_eq!(at(b"20280229235959Z"), Ok(datetime!(2028-02-29 23:59:59 UTC)));
    for bad in [
        b"20270229235959Z",
        b"20261301080000Z",
        b"20260900080000Z",
        b"20260901240000Z",
        b"20260901080060Z",
        b"202609010800+0Z",
        b"2026090108000.Z",
        b"20260901080000z",
        b"2609010800000ZZ",
    ] {
        assert_eq!(
            at(bad),
            Err(DerError::Time.into()),
            "{}",
            String::from_utf8_lossy(bad)
        );
    }
}

#[test]
fn fractions_and_offsets_become_whole_utc_seconds() {
    let mut value = small();
    value.auth_time = Some(datetime!(2026-09-01 10:00:00.999 +2));
    let read = IdentityExtension::from_der(&value.to_der().unwrap()).unwrap();
    assert_eq!(read.auth_time, Some(datetime!(2026-09-01 08:00 UTC)));
}

#[test]
fn more_than_four_kibibytes_are_neither_written_nor_read() {
    let mut value = small();
    while value.to_der().is_ok() {
        let name = format!("okta:{:0>120}", value.groups.len());
        value.groups.push(GroupName::parse(&name).unwrap());
        assert!(value.groups.len() < 64, "no limit");
    }
    assert_eq!(value.to_der(), Err(ExtensionError::TooLarge));
    let zeros = vec![0; IDENTITY_EXTENSION_BYTES_MAX + 1];
    assert_eq!(IdentityExtension::from_der(&zeros), Err(ExtensionError::TooLarge));
}

#[test]
fn texts_are_never_empty_nor_have_control_characters() {
    for bad in [String::new(), "a\nb".to_owned(), "x".repeat(256)] {
        let mut value = small();
        value.principal = bad.clone();
        assert_eq!(value.to_der(), Err(ExtensionError::Text("principal")));
        let mut value = full();
        value.name = Some(bad);
        assert_eq!(value.to_der(), Err(ExtensionError::Text("name")));
    }
    let mut newline = bytes(SMALL_VECTOR);
    let last = newline.len() - 1;
    newline[last] = b'\n';
    assert_eq!(
        IdentityExtension::from_der(&newline),
        Err(ExtensionError::Text("principal"))
    );
    newline[last] = 0xff;
    assert_eq!(IdentityExtension::from_der(&newline), Err(DerError::Utf8.into()));
}

fn text(length_max: usize) -> impl Strategy<Value = String> {
    proptest::string::string_regex(&format!("[ -~äß☃]{{1,{length_max}}}")).unwrap()
}

fn time() -> impl Strategy<Value = OffsetDateTime> {
    // Years 0 to 9999.
    (-62_167_219_200_i64..253_402_300_800)
        .prop_map(|seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap())
}

fn provider() -> impl Strategy<Value = IdentityProvider> {
    (text(20), text(60), text(60), proptest::option::of(text(20))).prop_map(
        |(connector, issuer, subject, acr)| IdentityProvider {
            connector,
            issuer,
            subject,
            acr,
        },
    )
}

prop_compose! {
    fn extensions()(
        kind in proptest::sample::select(Class::ALL.to_vec()),
        cluster in "[a-z][a-z0-9]{0,9}(\\.[a-z][a-z0-9]{0,9}){0,3}",
        principal in text(40),
        login_id in proptest::option::of(any::<[u8; 16]>()),
        (auth_time, login_deadline, mfa_time, groups_as_of) in (
            proptest::option::of(time()), proptest::option::of(time()),
            proptest::option::of(time()), proptest::option::of(time())),
        (generation, groups_vocabulary) in (proptest::option::of(any::<u64>()), proptest::option::of(any::<u64>())),
        idp in proptest::option::of(provider()),
        (login_method, device_id, name) in (
            proptest::option::of(text(20)), proptest::option::of(text(20)), proptest::option::of(text(20))),
        groups in proptest::collection::vec("[a-z]{1,8}:[a-zA-Z0-9 :/_-]{1,40}", 0..12),
    ) -> IdentityExtension {
        IdentityExtension {
            kind,
            cluster: ClusterName::parse(&cluster).unwrap(),
            principal,
            login_id: login_id.map(|bytes| LoginId::from_bytes(&bytes).unwrap()),
            auth_time, login_deadline, generation, idp, login_method, mfa_time, device_id,
            groups: groups.iter().map(|group| GroupName::parse(group).unwrap()).collect(),
            groups_vocabulary, groups_as_of, name,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(value in extensions()) {
        let der = value.to_der().unwrap();
        prop_assert_eq!(IdentityExtension::from_der(&der).unwrap(), value);
    }

    #[test]
    fn whatever_is_read_has_no_second_spelling(
        value in extensions(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut der = value.to_der().unwrap();
        for (at, byte) in edits {
            let at = at.index(der.len());
            der[at] = byte;
        }
        if let Ok(read) = IdentityExtension::from_der(&der) {
            prop_assert_eq!(read.to_der().unwrap(), der);
        }
    }

    #[test]
    fn garbage_and_prefixes_are_refused_without_panic(value in extensions(), garbage: Vec<u8>, cut: prop::sample::Index) {
        let _ = IdentityExtension::from_der(&garbage);
        let der = value.to_der().unwrap();
        let cut = &der[..cut.index(der.len())];
        prop_assert!(IdentityExtension::from_der(cut).is_err());
    }
}
