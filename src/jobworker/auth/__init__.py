"""Who a caller is (certificates), and what a caller may do (roles)."""
