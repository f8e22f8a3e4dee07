"""Access: principals, rules, and where logins come from: tables, fakes and generated input."""
