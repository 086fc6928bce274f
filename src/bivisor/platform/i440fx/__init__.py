"""The i440FX and PIIX board: a PC that firmware and any operating system of the last thirty years finds its way in."""
