"""Do DAML, ECAML, a class adversary and IE help classes never seen?"""
