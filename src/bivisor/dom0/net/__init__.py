"""Network back-ends: virtual interfaces of domains (vif), the bridges that join them, and the wires to elsewhere."""
