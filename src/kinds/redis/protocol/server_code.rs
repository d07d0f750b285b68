//! The words with which servers' own errors begin. A script may answer any other word, which may be anybody's data.

macro_rules! server_codes {
    ($($code:ident = $word:literal,)*) => {
        /// Such a word.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum ServerCode {
            $($code,)*
        }

        impl ServerCode {
            /// What `word` says, if it is one of them.
            pub(crate) fn of(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$code),)*
                    _ => None,
                }
            }

            /// The word.
            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$code => $word,)*
                }
            }
        }
    };
}

server_codes! {
    Ask = "ASK",
    Busy = "BUSY",
    BusyGroup = "BUSYGROUP",
    BusyKey = "BUSYKEY",
    ClusterDown = "CLUSTERDOWN",
    CrossSlot = "CROSSSLOT",
    Denied = "DENIED",
    Err = "ERR",
    ExecAbort = "EXECABORT",
    InProg = "INPROG",
    InvalidObj = "INVALIDOBJ",
    IoErr = "IOERR",
    Loading = "LOADING",
    MasterDown = "MASTERDOWN",
    MisConf = "MISCONF",
    Moved = "MOVED",
    NoAddr = "NOADDR",
    NoAuth = "NOAUTH",
    NoGoodSlave = "NOGOODSLAVE",
    NoGroup = "NOGROUP",
    NoMasterLink = "NOMASTERLINK",
    NoPerm = "NOPERM",
    NoProto = "NOPROTO",
    NoReplicas = "NOREPLICAS",
    NoScript = "NOSCRIPT",
    NotBusy = "NOTBUSY",
    NotReady = "NOTREADY",
    Oom = "OOM",
    ReadOnly = "READONLY",
    Stale = "STALE",
    TryAgain = "TRYAGAIN",
    Unblocked = "UNBLOCKED",
    Unkillable = "UNKILLABLE",
    Unstable = "UNSTABLE",
    WrongPass = "WRONGPASS",
    WrongType = "WRONGTYPE",
}
