//! The unique id: 128 bytes of text that name the address where the ranks meet.

use std::net::SocketAddr;

/// `NCCL_UNIQUE_ID_BYTES`.
pub const BYTES: usize = 128;
const PREFIX: &str = "fakecuda nccl ";

/// The address as an id, filled up with zeros.
pub fn encode(address: SocketAddr) -> [u8; BYTES] {
    let text = format!("{PREFIX}{address}");
    let mut id = [0; BYTES];
    // The longest address, IPv6 with a scope and a port, has fewer than 70 characters.
    id[..text.len()].copy_from_slice(text.as_bytes());
    id
}

/// The address in an id; `None` for bytes that are no id of this stand-in.
pub fn decode(id: &[u8; BYTES]) -> Option<SocketAddr> {
    let length = id.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&id[..length]).ok()?.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_carries_its_address_and_other_bytes_none() {
        let address = "127.0.0.1:40123".parse().unwrap();
        assert_eq!(decode(&encode(address)), Some(address));
        assert_eq!(decode(&[0; BYTES]), None);
        assert_eq!(decode(&[7; BYTES]), None);
    }
}
