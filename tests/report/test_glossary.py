from sdkernels.report import glossary


def test_the_terms_of_the_table_are_explained() -> None:
    body = glossary.section()
    for term in ("Student, teacher", "Gap", "Entropy", "Epistemic markers", "Direction", "Rollout"):
        assert f"<dt>{term}</dt>" in body
