"""`gateway validate`: does a running gateway answer as documented, and how fast?"""
