"""What runs inside a virtual machine. It is copied there and started without anything else of Flame."""
