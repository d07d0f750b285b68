//! The fields of a message, read in place: nothing is copied, and nothing has to be known of the rest.

/// A field of a message.
enum Field<'a> {
    Bytes(&'a [u8]),
    Other,
}

/// Fields of a message one by one; `None` for what is none, after which nothing comes.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn skip(&mut self, count: u64) -> Option<&'a [u8]> {
        let (skipped, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(skipped)
    }

    fn field(&mut self) -> Option<(u32, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => self.varint().map(|_| Field::Other)?,
            1 => self.skip(8).map(|_| Field::Other)?,
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.skip(length)?)
            }
            5 => self.skip(4).map(|_| Field::Other)?,
            _ => return None,
        };
        Some((u32::try_from(key >> 3).ok()?, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            match self.field() {
                Some((number, Field::Bytes(bytes))) => return Some(Some((number, bytes))),
                Some((_, Field::Other)) => {}
                None => {
                    self.0 = &[];
                    return Some(None);
                }
            }
        }
        None
    }
}

/// The last field of that number; empty if there is none. `None` if `message` is no message.
pub(crate) fn last(message: &[u8], number: u32) -> Option<&[u8]> {
    Fields(message).try_fold(&[][..], |found, field| {
        let (at, bytes) = field?;
        Some(if at == number { bytes } else { found })
    })
}

/// The text that a field is; `None` if it is none.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
