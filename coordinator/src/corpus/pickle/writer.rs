//! Writes pickles of plain data, as protocol 2 does: for tests.

/// A value to be pickled.
#[derive(Debug, Clone)]
pub(in crate::corpus) enum Plain {
    Int(i64),
    Text(String),
    /// A string of Python 2.
    Bytes(Vec<u8>),
    List(Vec<Plain>),
    Dict(Vec<(Plain, Plain)>),
    /// As protocol 2 writes `set([...])`.
    Set(Vec<Plain>),
}

impl Plain {
    pub(in crate::corpus) fn text(text: &str) -> Self {
        Plain::Text(text.into())
    }

    pub(in crate::corpus) fn list(items: impl IntoIterator<Item = Plain>) -> Self {
        Plain::List(items.into_iter().collect())
    }

    pub(in crate::corpus) fn texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Plain::list(texts.into_iter().map(Plain::text))
    }

    pub(in crate::corpus) fn ints(numbers: impl IntoIterator<Item = i64>) -> Self {
        Plain::list(numbers.into_iter().map(Plain::Int))
    }

    pub(in crate::corpus) fn dict<'a>(pairs: impl IntoIterator<Item = (&'a str, Plain)>) -> Self {
        Plain::Dict(pairs.into_iter().map(|(key, value)| (Plain::text(key), value)).collect())
    }

    /// The pickle of the value.
    pub(in crate::corpus) fn pickled(&self) -> Vec<u8> {
        let mut bytes = b"\x80\x02".to_vec();
        self.write(&mut bytes);
        bytes.push(b'.');
        bytes
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        match self {
            Plain::Int(number) => {
                bytes.extend(b"\x8a\x08");
                bytes.extend(number.to_le_bytes());
            }
            Plain::Text(text) => counted(b'X', text.as_bytes(), bytes),
            Plain::Bytes(text) => counted(b'T', text, bytes),
            Plain::List(items) => {
                bytes.extend(b"](");
                items.iter().for_each(|item| item.write(bytes));
                bytes.push(b'e');
            }
            Plain::Dict(pairs) => {
                bytes.extend(b"}(");
                for (key, value) in pairs {
                    key.write(bytes);
                    value.write(bytes);
                }
                bytes.push(b'u');
            }
            Plain::Set(items) => {
                bytes.extend(b"c__builtin__\nset\n");
                Plain::List(items.clone()).write(bytes);
                bytes.extend(b"\x85R");
            }
        }
    }
}

fn counted(opcode: u8, text: &[u8], bytes: &mut Vec<u8>) {
    bytes.push(opcode);
    bytes.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    bytes.extend(text);
}
