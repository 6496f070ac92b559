"""What a pool may do about calls that fail, come too often or take too long: each an option, off unless asked for."""
