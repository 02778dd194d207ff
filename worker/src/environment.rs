//! Everything a handler may touch. Built once by `main`, handed to each duty; nothing is global.
