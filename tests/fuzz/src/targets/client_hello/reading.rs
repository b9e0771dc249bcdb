//! A ClientHello read again, by nothing but its definition (RFC 8446 §4.1.2, §5.1; RFC 6066 §3; RFC 7301 §3.1).

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const ALPN: u16 = 16;

/// What the bytes say, without judging it.
pub(super) struct Reading {
    /// Every host name in the server name extension.
    pub(super) names: Vec<String>,
    /// Every protocol offered.
    pub(super) alpn: Vec<Vec<u8>>,
}

/// Reads the first message in `stream`, which may span records.
pub(super) fn facts(stream: &[u8]) -> Option<Reading> {
    let message = first_message(stream)?;
    let mut fields = Bytes(&message);
    fields.take(2 + 32)?;
    fields.vector8()?;
    fields.vector16()?;
    fields.vector8()?;
    let mut reading = Reading {
        names: Vec::new(),
        alpn: Vec::new(),
    };
    if fields.0.is_empty() {
        return Some(reading);
    }
    let mut extensions = Bytes(fields.vector16()?);
    while !extensions.0.is_empty() {
        let (kind, body) = (extensions.number16()?, extensions.vector16()?);
        match kind {
            SERVER_NAME => read_names(body, &mut reading.names)?,
            ALPN => read_protocols(body, &mut reading.alpn)?,
            _ => {}
        }
    }
    Some(reading)
}

/// The body of the ClientHello, collected over its records.
fn first_message(stream: &[u8]) -> Option<Vec<u8>> {
    let (mut records, mut collected) = (Bytes(stream), Vec::new());
    loop {
        if records.take(1)? != [HANDSHAKE] {
            return None;
        }
        records.take(2)?;
        collected.extend(records.vector16()?);
        let mut message = Bytes(&collected);
        let Some(head) = message.take(4) else {
            continue;
        };
        if head[0] != CLIENT_HELLO {
            return None;
        }
        let length = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
        if let Some(body) = message.take(length) {
            return Some(body.to_vec());
        }
    }
}

fn read_names(body: &[u8], names: &mut Vec<String>) -> Option<()> {
    let mut list = Bytes(Bytes(body).vector16()?);
    while !list.0.is_empty() {
        if list.take(1)?[0] != HOST_NAME {
            // How another kind of name is laid out, and where it ends, nobody has defined.
            return Some(());
        }
        names.push(String::from_utf8_lossy(list.vector16()?).into_owned());
    }
    Some(())
}

fn read_protocols(body: &[u8], alpn: &mut Vec<Vec<u8>>) -> Option<()> {
    let mut list = Bytes(Bytes(body).vector16()?);
    while !list.0.is_empty() {
        alpn.push(list.vector8()?.to_vec());
    }
    Some(())
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(usize::from(length))
    }
}
