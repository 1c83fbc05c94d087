"""Coverage-guided fuzzing of the properties that the other tests have: python -m tests.fuzz"""
