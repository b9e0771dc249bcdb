//! Control messages, dial-back tokens and the iap/1 frames
